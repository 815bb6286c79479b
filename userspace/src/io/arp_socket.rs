//! arp_socket
