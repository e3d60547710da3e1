# cmake -DFROM=FILE -DTO=FILE -DOLD=TEXT -DNEW=TEXT -P mutate.cmake: the file with its only OLD as NEW.
file(READ "${FROM}" text)
string(FIND "${text}" "${OLD}" first)
string(FIND "${text}" "${OLD}" last REVERSE)
if(first EQUAL -1 OR NOT first EQUAL last)
  message(FATAL_ERROR "${FROM} does not have this once: ${OLD}")
endif()
string(REPLACE "${OLD}" "${NEW}" text "${text}")
file(WRITE "${TO}" "${text}")
