"""Pages for a browser: a run or a comparison as one file that needs no other."""
