"""`spotd demo`: the whole story on one machine, told as it happens."""
