"""What everything else rests on: it imports nothing of the library, nor Django."""
