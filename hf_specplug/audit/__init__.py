"""`specplug audit`: whether drafted generation gives the tokens of plain `generate` here."""
