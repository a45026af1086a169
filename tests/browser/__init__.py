"""The admin in a real browser: `nox -s browser` runs these tests, and `python -m tests.browser.screenshots` takes the
pictures of the documentation.
"""
