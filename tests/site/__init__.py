"""The documentation as a site: `make docs` builds it with `mkdocs.yml`, and `python -m tests.site.figures` draws its
figures.
"""
