"""DICOM in and out: from a folder or archive of series to volumes, and from masks to DICOM SEG."""
