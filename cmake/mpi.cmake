# Finds MPI for lora::mpi, quietly. This file is installed beside lora-config.cmake.

macro(lora_find_mpi)
  if(NOT TARGET MPI::MPI_CXX)
    find_package(MPI QUIET COMPONENTS CXX)
    # Global, because a project with lora in its own tree links to lora::mpi from folders beside this one.
    if(TARGET MPI::MPI_CXX)
      set_target_properties(MPI::MPI_CXX PROPERTIES IMPORTED_GLOBAL TRUE)
    endif()
  endif()
endmacro()
