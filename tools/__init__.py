"""Scripts that build, package, test and document this repository. Users run none of them."""
