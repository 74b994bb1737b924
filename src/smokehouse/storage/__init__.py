"""Files, locks, disks and downloads: what the builder keeps on disk, always whole or not at all."""
