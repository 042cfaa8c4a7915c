"""What each command does, given its options as attributes; flags are read in `cli`.

One file for each command; `build` is what they share.
"""
