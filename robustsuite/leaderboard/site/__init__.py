"""The static site: pages that open from a folder, without network, build step or chart library."""
