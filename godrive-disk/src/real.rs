pub struct RealDisk {}
