"""Other projects' quantizers, as the methods call them."""
