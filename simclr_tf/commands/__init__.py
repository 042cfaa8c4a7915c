"""What each command does, given its options as plain attributes; flags are read in `cli.py`.

One file for each command; `build` is what they share.
"""
