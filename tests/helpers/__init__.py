"""What the tests share: the two implementations side by side, exact comparison, counting."""
