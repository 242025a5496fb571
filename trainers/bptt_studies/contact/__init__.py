"""What contacts do to the rules: losses and gradients over the stiffness of what is touched."""
