"""What this machine has, and what of it this process may use: one function for each fact.

In: files that the system keeps. Out: counts, bytes and names. A file that is missing, unreadable or
strange means that this fact is not known from there: the next source answers, or the widest limit.
"""
