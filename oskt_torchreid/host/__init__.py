"""The edge to torchreid: nothing outside of this folder imports it."""
