"""The tables of all keys, a file for each subject; `config/tree.py` puts them together."""
