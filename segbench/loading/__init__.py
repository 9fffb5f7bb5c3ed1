"""Augmentation, the training stream, the cache of decoded images, and the check of data before training."""
