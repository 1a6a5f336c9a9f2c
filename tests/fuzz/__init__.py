"""What strangers bring, at random: damaged data folders and odd values of keys, each followed by a run."""
