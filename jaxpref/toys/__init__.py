"""Starting points of toy studies: small language models, pretrained on synthetic data in seconds."""
