"""Images: what a lock becomes as an image, and how it is built."""
