# Finds utf8proc as the target utf8proc::utf8proc; Debian's package has no CMake configuration of its own.
macro(lora_require_utf8proc)
  if(NOT TARGET utf8proc::utf8proc)
    find_path(UTF8PROC_INCLUDE_DIR utf8proc.h)
    find_library(UTF8PROC_LIBRARY utf8proc)
    mark_as_advanced(UTF8PROC_INCLUDE_DIR UTF8PROC_LIBRARY)
    if(NOT UTF8PROC_INCLUDE_DIR OR NOT UTF8PROC_LIBRARY)
      message(
        FATAL_ERROR
          "utf8proc was not found (Debian: libutf8proc-dev). It is needed by what the options LORA_BUILD_TESTS and "
          "LORA_BUILD_EXAMPLES switch on, not by the library.")
    endif()
    add_library(utf8proc::utf8proc UNKNOWN IMPORTED)
    set_target_properties(utf8proc::utf8proc PROPERTIES IMPORTED_LOCATION ${UTF8PROC_LIBRARY}
                                                        INTERFACE_INCLUDE_DIRECTORIES ${UTF8PROC_INCLUDE_DIR})
  endif()
endmacro()
