"""Where candidate rows come from."""
