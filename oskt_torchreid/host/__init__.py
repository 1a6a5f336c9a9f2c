"""The interface to torchreid: nothing outside this folder imports it."""
