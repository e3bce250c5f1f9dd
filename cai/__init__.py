"""constitution-as-code: declarative Constitutional AI."""
