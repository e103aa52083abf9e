"""The resident process beside a site's data, and the protocol by which it is asked."""
