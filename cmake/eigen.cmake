# Finds Eigen and checks its version. find_package is called without a version: Eigen 3.4's version file refuses a
# range, and Eigen 5's refuses 3.4. This file is installed beside lora-config.cmake, so that both check the same.

set(LORA_EIGEN_MINIMUM 3.4)

# Sets `problem` to a message if there is no suitable Eigen, and to the empty string otherwise.
macro(lora_look_for_eigen problem)
  set(${problem} "")
  if(NOT TARGET Eigen3::Eigen)
    find_package(Eigen3 CONFIG QUIET)
    if(NOT TARGET Eigen3::Eigen)
      set(${problem}
          "lora needs Eigen ${LORA_EIGEN_MINIMUM} or newer and found none. Install it (Debian: libeigen3-dev), or set "
          "Eigen3_DIR to the folder that holds Eigen3Config.cmake.")
    elseif(Eigen3_VERSION VERSION_LESS LORA_EIGEN_MINIMUM)
      set(${problem} "lora needs Eigen ${LORA_EIGEN_MINIMUM} or newer, and ${Eigen3_DIR} holds ${Eigen3_VERSION}.")
    endif()
    string(CONCAT ${problem} ${${problem}})
  endif()
endmacro()

macro(lora_find_eigen)
  lora_look_for_eigen(_lora_eigen_problem)
  if(_lora_eigen_problem)
    message(FATAL_ERROR "${_lora_eigen_problem}")
  endif()
endmacro()
