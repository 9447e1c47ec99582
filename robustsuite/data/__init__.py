"""From a data reference to a `Dataset`: registered names, files, folders, archives, subsets, fingerprints."""
