"""Real servers on this machine's CPU, asked by the real client: what they keep to, and whole stages through them."""
