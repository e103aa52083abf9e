"""What each party of a deployment gets: keys, certificates, files to start with, and checks."""
