"""How good an adapter is: real decoding, compared with the reference answers."""
