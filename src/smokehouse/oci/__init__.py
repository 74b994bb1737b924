"""OCI images: documents, references, layouts, layer file systems and registries; knows nothing of environments."""
