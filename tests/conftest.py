"""Settings of every test: property tests draw the same few examples each run, however slow it is.

`pytest --hypothesis-profile=default` draws new ones; what it finds becomes an @example.
"""

from hypothesis import settings

settings.register_profile("house", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("house")
