"""What the library costs, measured against floors and peers; one program for each question."""
