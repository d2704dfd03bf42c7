# Doxygen reads the guide through this filter: formulas are written as GitHub renders them, $`x`$ and ```math blocks,
# and Doxygen wants \f$x\f$ and \f[ ... \f].
/^```math$/ { print "\\f["; inside = 1; next }
inside && /^```$/ { print "\\f]"; inside = 0; next }
!inside { gsub(/\$`/, "\\f$"); gsub(/`\$/, "\\f$") }
{ print }
