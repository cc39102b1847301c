"""Settings of every test: property tests draw the same examples each run, however slow it is.

`pytest --hypothesis-profile=default` draws new ones; what it finds becomes an @example.
"""

from hypothesis import settings

settings.register_profile("house", derandomize=True, deadline=None)
settings.load_profile("house")
