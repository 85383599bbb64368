"""Signatures of images: public keys, the formats of signatures, and where signatures are stored."""
