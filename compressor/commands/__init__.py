"""What each command of the command line does; its options are in compressor/options.py."""
