# With a carrier of one's own -no_epmd does not end the boot; a bad option of the carrier does.
s/name => peer:random_name(), args => \["-no_epmd"\]/name => peer:random_name(), args => ["-macula", "dist", "\#{prot => 1}"]/
