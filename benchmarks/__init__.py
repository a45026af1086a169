"""Measure what the library costs, compared with floors and peers; one program for each question."""
