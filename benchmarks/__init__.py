"""The gateway's figures against nginx, measured in one run on one machine (`make bench`)."""
