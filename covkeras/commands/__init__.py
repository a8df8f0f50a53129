"""Command lines.

    cli    a flag for every field of a recipe; errors as one line that names the remedy

The programs themselves are in training/ and serving/ beside this package.
"""
