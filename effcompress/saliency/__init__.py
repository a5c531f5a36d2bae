"""How much would be missed: from weights, gradients and Hessians to one number per mini-group."""
