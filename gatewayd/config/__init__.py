"""The only reader of YAML, environment variables and secret files: text in, one `Config` out."""
