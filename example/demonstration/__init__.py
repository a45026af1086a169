"""What `demo.py` is made of: the terminal, the road from the site to the workers, and what goes down it."""
