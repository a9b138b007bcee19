"""One file a revision, `vNNNN_words.py`; never changed after its release."""
