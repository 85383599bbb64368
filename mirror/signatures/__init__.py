"""Signatures of images: public keys, signature formats, and the tags, referrers and layers that contain signatures."""
