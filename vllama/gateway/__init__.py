"""HTTP on 11434: decides which worker speaks, and carries its bytes."""
