# Doxygen reads the guide through this filter. Formulas are written as GitHub renders them, $`x`$ and ```math blocks,
# and Doxygen wants \f$x\f$ and \f[ ... \f]. A link to another page becomes one to the page's label: Doxygen would make
# the path of the file of it, and not find the end of one with a blank.
/^```math$/ { print "\\f["; inside = 1; next }
inside && /^```$/ { print "\\f]"; inside = 0; next }
!inside {
  gsub(/\$`/, "\\f$")
  gsub(/`\$/, "\\f$")
  while (match($0, /\]\([a-z_]+\.md\)/)) {
    $0 = substr($0, 1, RSTART + 1) "@ref md_guide_" substr($0, RSTART + 2, RLENGTH - 6) substr($0, RSTART + RLENGTH - 1)
  }
}
{ print }
