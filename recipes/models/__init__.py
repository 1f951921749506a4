"""Models: new tiny ones, SmolLM2, folders and the Hugging Face hub; what is known of them; their export."""
